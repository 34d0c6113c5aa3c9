"""Reads Hugging Face model folders: architecture, chat template, image preprocessing, completeness."""
