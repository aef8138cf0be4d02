"""Counts each field and each cell of a slide once: registers frames, keeps a map, follows cells, pools verdicts.

Needs OpenCV. Knows boxes and probabilities of cells, not how they were found.
"""
