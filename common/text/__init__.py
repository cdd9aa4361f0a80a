"""From words to labels: "remove the barking dog" means ``dog``. English only, plain Python.

``understanding`` reads a text by the phrases of ``aliases`` and ``others``; ``spelling`` finds what
a misspelt word was meant to be.
"""
