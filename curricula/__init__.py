"""Curricula: what decides the skill and the level of each next prompt. Each file is a family; recipes name them as
`file:Class`.

A curriculum is built as `Class(levels, **options)`, `levels` being the number of levels per skill, and implements
`rld.types.Curriculum`. Its state is plain data that fits into JSON.
"""
