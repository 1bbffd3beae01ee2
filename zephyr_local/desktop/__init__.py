"""A model and its chat for desktop applications: ``desktop.qt``, ``desktop.tk``, and what both are made of.

Importing this imports no toolkit; ``desktop.qt`` and ``desktop.tk`` import theirs.
"""
