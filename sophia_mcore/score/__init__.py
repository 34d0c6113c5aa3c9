"""Verdicts and rewards: final answers extracted, compared in killable processes, turned into rewards, and selected.

extract   response -> the final answer as text, or None
exact     what can be decided in microseconds: equal strings, rational numbers, option letters
equivalence, worker, pool   everything else, with math-verify in processes that can be killed
grade     the Grader, which joins these with caches; grade_file is `sophia grade`
reward    outcome, visual reward, selection (eqs. 4-6): pure functions
phase     the score phase of a round over the store
"""
