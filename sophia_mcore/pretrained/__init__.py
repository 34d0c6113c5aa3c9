"""What a Hugging Face model folder holds: architecture, chat template, image preprocessing, completeness."""
