"""What judges a classifier: measures, protocols, peers, reports. Serving imports none of it."""
