"""Extract and compare answers: pure, useful alone, without configuration, store or progress."""
