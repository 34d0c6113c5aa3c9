"""Is the final answer the gold answer? Exact rules first, then algebra."""
