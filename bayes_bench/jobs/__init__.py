"""One job: what it is, what it needs, fit, draw, predict, measure, record; and its posterior back to life."""
