"""The enhancer: noise suppression steered by the mask, and the return of a missing top band."""
