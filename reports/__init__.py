"""What a finished run looks like: figures, Markdown, tables, a Perfetto timeline, and answers to `get` and `describe`.

Pure functions from runs; `folder` alone writes files. Plotting libraries load on use.
"""
