"""Tests of scripts/on-gpu, on machines that are made up.

    python3 -m unittest discover --start-directory scripts --top-level-directory scripts

Programs that are not here (flashtile, nvidia-smi, torch) are scripts that say what the test needs.
"""
