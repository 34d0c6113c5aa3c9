"""What tests of several folders share: tiny models, configurations, pictures, run folders, ranks."""
