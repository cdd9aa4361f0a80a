"""The routes: what comes in is checked here, the work is done elsewhere."""
