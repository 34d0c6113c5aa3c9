"""Sampling: the policy describes images, a text-only reasoner thinks from the descriptions.

Runs in the rollout environment; only the engine modules import torch or vLLM.
"""
