"""Which rank holds which box of which tensor."""
