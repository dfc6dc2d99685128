"""What ``make bench`` measures: a module for each subject, in it a function for each kind of line.

A line is a generator function under `lines.line`. It prepares, yields what is to be timed (`Turns`) or what it counted
(`Count`), and cleans up; `table.py` one folder up measures, prints, stores and compares. A new module of this folder is
found by itself.
"""
