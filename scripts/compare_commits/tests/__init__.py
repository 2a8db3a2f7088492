"""Tests of scripts/compare-commits, with programs and a repository that are made up."""
