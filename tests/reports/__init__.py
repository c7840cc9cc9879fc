"""Tests of simmim.reports."""
