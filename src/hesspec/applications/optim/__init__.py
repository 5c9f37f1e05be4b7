"""Curvature-based optimiser steps."""
