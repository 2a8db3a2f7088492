"""What scripts/compare-commits is made of. Standard library only, Python 3.8 or later.

    cases.py   what is measured
    build.py   the program at a commit
    pairs.py   runs in turns, their ratios, and the table
"""
