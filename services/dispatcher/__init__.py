"""Publishes what is ready, takes back what is lost, keeps the counters. Alone writes to queues."""
