"""vLLM inside this process, against transformers.generate and the trainer's own forward pass."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest_vllm import move
from scipy import stats

from advalign.errors import BudgetError, ConfigError, RolloutError
from advalign.models import load
from advalign.rollout.vllm import VLLM
from advalign.tasks.constraints import Constraints
from advalign.types import Example, Sampling
