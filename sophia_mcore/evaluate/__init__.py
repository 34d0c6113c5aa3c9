"""pass@1 on held-out questions, before and after training, by the same code.

``answers`` runs in the rollout environment; ``results`` and ``statistics`` are light.
"""
