"""Curricula: classes that choose the skill and the level of each prompt. Each file is a family; recipes name them as
`file:Class`.

A curriculum is built as `Class(levels, **options)`, `levels` being the number of levels per skill, and implements
`rld.types.Curriculum`. Its state consists of values that JSON can represent.
"""
