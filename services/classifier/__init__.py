"""The classifier: tags of a recording, and events with onset, offset and confidence."""
