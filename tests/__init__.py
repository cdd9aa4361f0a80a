"""Tests. Real Redis, PostgreSQL and S3 servers come from ``tests.servers``."""
