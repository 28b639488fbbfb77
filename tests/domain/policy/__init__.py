"""Tests of the polling policy: its laws, what it learns, and how it treats brands and cars that are odd."""
