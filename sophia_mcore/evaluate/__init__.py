"""pass@1 on held-out questions, before and after training, computed by the same code.

``generate.answers`` samples and grades the answers in the rollout environment; the modules here only read them.
"""
