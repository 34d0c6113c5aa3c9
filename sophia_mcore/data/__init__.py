"""Questions with images from outside, checked, as questions of the store; the prompts."""
