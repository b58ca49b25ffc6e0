"""Models in the files of other runtimes: one module per format writes and reads them, and what was written is verified.

A module of a format has three functions. `require_exportable(model, tokenizer, precision)` raises a `ModelError` that
names what the format or its runtime does not have. `write(model, tokenizer, folder, precision)` fills a folder.
`open_runtime(folder, context, threads)` returns a `Runtime`; it is called in a process without torch, so a module
imports no more than it needs there.
"""
