"""What any answer is made of: characters, words, numbers, quantities, dates."""
