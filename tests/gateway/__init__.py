"""Tests of the gateway over real HTTP, databases and object stores."""
