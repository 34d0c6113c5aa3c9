"""Verdicts become rewards and a kept set. The comparison of answers itself is `verify`.

reward, advantage   outcome, visual reward, selection (eqs. 4-6), weights of trajectories: pure functions
grading, judge      the grader that `[score]` describes, and its language-model judge
phase               the score phase of a round over the store; second_opinion asks math-verify about a sample
grade_file, lines   `sophia grade`
rescore             what another version of the verifier changes
children, helper    further processes that share the work
"""
