"""Parts that every generator of weights shares."""
