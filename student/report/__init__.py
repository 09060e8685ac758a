"""python -m student.report: how runs go or went, on the terminal and as a page of curves. Needs no torch."""
