"""Why the classifier heard what it heard: maps, pictures and audio of what spoke for a label.

For inference only, and only where somebody asks: captum and matplotlib are imported inside the
functions that need them. What each method can and cannot tell is in docs/explanations.md.
"""
