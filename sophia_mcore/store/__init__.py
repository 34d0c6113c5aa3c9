"""The run folder on disk: Parquet shards that are written once, work units that tasks claim, images, lineage, locks."""
