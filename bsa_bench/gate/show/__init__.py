"""A gate's result for each of its readers.

`terminal` for a person at a terminal or behind a pipe, `markdown` for a pull request, `junit` for a test dashboard,
`github` for annotations and the step summary of a workflow, `files` for the files that flags name. `rows` and `words`
are what they share, so that a figure reads the same everywhere.
"""
