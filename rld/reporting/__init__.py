"""What a run tells: logs, terminal, tables, charts, report. Nothing here trains."""
