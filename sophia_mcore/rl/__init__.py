"""The on-policy stage as pure functions: question stream, groups and advantages, selective sample replay, versions."""
