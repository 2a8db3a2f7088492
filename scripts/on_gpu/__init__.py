"""What scripts/on-gpu is made of. Standard library only, Python 3.8 or later.

    processes.py   child processes that cannot outlive their time
    machine.py     the GPU, its drivers, and the environment that programs run in
    session.py     steps: their time limits, what they print, the summary
    checks.py      the steps that ask whether the results are right
    competitor.py  a program that stays in memory and measures one case per line
    bench.py       the step that measures, and the file of results
"""
