"""Pretraining by feature prediction on transformers' Trainer: the only place where the pretraining optimiser steps."""
