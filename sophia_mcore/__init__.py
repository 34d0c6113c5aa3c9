"""SOPHIA on Megatron-Core: a vision-language model learns slow thinking by semi-off-policy RL.

The flow, and the file tree:

    questions      data/       images, questions and verified answers from any dataset
    captions       generate/   the policy describes each image K times, without the question
    trajectories   generate/   a text-only reasoner thinks N times from each caption
    verdicts       score/      each final answer is extracted and verified: outcome reward
    kept           score/      visual reward = mean outcome; the shortest correct ones survive
    packed batches batch/      (system, image, question) -> trajectory, packed into fixed lengths
    model          model/      the model on Megatron-Core, any tensor/pipeline/context layout
    objective      objective/  off-policy policy gradient over vocab-parallel log-probs
    weights        weights/    Hugging Face <-> Megatron, then back into vLLM and evaluate/
"""

__version__ = "0.1.0"
