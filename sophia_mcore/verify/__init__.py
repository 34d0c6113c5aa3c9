"""Extract final answers and compare them with gold answers: a pure package, useful alone (README.md beside this file).

text       what answers are made of: characters, words, numbers, quantities, dates
reading    response -> the final answer as text, or None
comparing  is it the gold answer? exact: what can be decided in microseconds; equivalence: the rest, with math-verify,
           in processes that can be killed (worker, pool)
grade      the Grader, which joins these with caches; grade_one for a single answer
"""

from sophia_mcore.verify.grade import Grader, grade_one
from sophia_mcore.verify.types import Grade, GradeItem, Judge

__all__ = ["Grade", "GradeItem", "Grader", "Judge", "grade_one"]
