"""Packing loose images into shards."""
