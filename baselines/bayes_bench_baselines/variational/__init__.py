"""Distributions over weights fitted by the evidence lower bound."""
