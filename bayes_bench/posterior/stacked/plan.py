"""From a module to a list of stacked operations: traced once with ``torch.fx``, refused where unsure."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bayes_bench.posterior.stacked import operations
from bayes_bench.posterior.stacked.operations import NotStackableError, Value

Rule = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]
"""(values of earlier nodes, the layer's own weights) → the node's value."""


@dataclass(frozen=True)
class Step:
    """One node of the plan.

    Attributes:
        run: takes the environment and this step's own weights, gives the node's value.
        parameters: the layer's parameter → its name in ``network.named_parameters()``.
        inputs: names of the nodes it reads.
        description: for ``StackedNetwork.explain``.
    """

    name: str
    run: Rule
    parameters: Mapping[str, str]
    inputs: tuple[str, ...]
    description: str


class Plan:
    """The steps of a network in order. ``input_name`` and ``output_name`` are nodes."""

    def __init__(self, steps: list[Step], input_name: str, output_name: str):
        self.steps = steps
        self.input_name = input_name
        self.output_name = output_name
        readers: dict[str, int] = {}
        for position, step in enumerate(steps):
            for name in step.inputs:
                readers[name] = position
        self._last_reader = {
            position: [n for n, p in readers.items() if p == position] for position in range(len(steps))
        }

    def shared_steps(self, shared_parameters: Set[str], own_inputs: bool) -> frozenset[str]:
        """Nodes whose value is the same for all networks, whatever the chunk."""
        shared = set() if own_inputs else {self.input_name}
        for step in self.steps:
            if shared.issuperset(step.inputs) and shared_parameters >= set(step.parameters.values()):
                shared.add(step.name)
        return frozenset(shared)

    def run(
        self,
        weights: Mapping[str, Tensor],
        x: Value,
        memo: dict[str, Any],
        memoise: frozenset[str] = frozenset(),
    ) -> Value:
        """Evaluate. ``memo`` keeps the nodes named in ``memoise`` from one chunk of networks to the next."""
        environment: dict[str, Any] = {self.input_name: x}
        for position, step in enumerate(self.steps):
            if step.name in memo:
                environment[step.name] = memo[step.name]
            else:
                own = {role: weights[name] for role, name in step.parameters.items()}
                environment[step.name] = step.run(environment, own)
                if step.name in memoise:
                    memo[step.name] = environment[step.name]
            for name in self._last_reader[position]:
                if name != self.output_name:
                    del environment[name]
        result = environment[self.output_name]
        if not isinstance(result, Value):
            raise NotStackableError("the network does not return one tensor")
        return result


def make_plan(network: nn.Module) -> Plan:
    """Trace a network in evaluation mode.

    Raises:
        NotStackableError: tracing fails, or a layer or function has no stacked rule.
    """
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotStackableError(f"module {name or 'network'} has forward hooks")
        if "forward" in vars(module):
            raise NotStackableError(f"the forward of module {name or 'network'} was replaced")
        if hasattr(module, "parametrizations"):
            raise NotStackableError(f"module {name or 'network'} is parametrised")
    # Wrapped, because a root that is itself a layer would be traced into instead of being one operation.
    root = nn.Sequential(network)
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # whatever the user's forward does with a proxy
        raise NotStackableError(f"torch.fx cannot trace it: {error}") from error
    names = {id(parameter): name for name, parameter in network.named_parameters()}  # tied ones have one name
    modules = dict(root.named_modules())
    _without_writing_in_place(graph, modules)
    _pool_before_activation(graph, modules)
    steps: list[Step] = []
    input_name = output_name = ""
    for node in graph.nodes:
        if node.op == "placeholder":
            if input_name:
                raise NotStackableError("forward takes more than one input")
            input_name = node.name
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise NotStackableError("the network does not return one tensor")
            output_name = node.args[0].name
        elif node.op == "call_module":
            steps.append(_module_step(node, modules, names))
        elif node.op in ("call_function", "call_method"):
            inputs = tuple(arg.name for arg in node.all_input_nodes)
            label = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            steps.append(Step(node.name, _function_rule(node), {}, inputs, str(label)))
        else:
            raise NotStackableError(f"forward uses {node.target!r} directly")
    return Plan(steps, input_name, output_name)


class _Tracer(fx.Tracer):
    """Torch's own layers are operations, and others that have a rule."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return operations.is_frozen_norm(m) or super().is_leaf_module(m, module_qualified_name)


def _without_writing_in_place(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let what works in place on a fresh value that nobody else reads make a new value instead: the same result.

    Others keep their option, for which there is no rule.
    """

    def fresh(node: Any) -> bool:
        if not isinstance(node, fx.Node) or len(node.users) > 1:
            return False
        if node.op == "call_module":  # others, such as Flatten and Dropout, may give a view of what somebody else reads
            module = modules[str(node.target)]
            return type(module) in operations.FRESH_MODULES and not getattr(module, "inplace", False)
        target: Any = node.target
        known = (
            target in operations.BINARY_FUNCTIONS or target in operations.INCREASING or target in operations.MAX_POOLING
        )
        return known and not node.kwargs.get("inplace", False)

    for node in graph.nodes:
        if node.op == "call_function" and node.kwargs.get("inplace") and fresh(node.args[0]):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_module" and getattr(modules[node.target], "inplace", False):
            uses = [other for other in graph.nodes if other.op == "call_module" and other.target == node.target]
            if all(fresh(other.args[0]) for other in uses):
                modules[node.target] = copy.copy(modules[node.target])
                modules[node.target].__dict__["inplace"] = False


def _pool_before_activation(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Let max-pooling come before an increasing function: the same values, bit for bit, with fewer to transform."""
    for pool in list(graph.nodes):
        kind = type(modules[pool.target]) if pool.op == "call_module" else pool.target
        if kind not in operations.MAX_POOLING or not pool.args or not isinstance(pool.args[0], fx.Node):
            continue
        activation = pool.args[0]
        if len(activation.users) == 1 and _increases(activation, modules) and _sees_values(pool, modules):
            pool.replace_all_uses_with(activation)
            pool.update_arg(0, activation.args[0])
            activation.update_arg(0, pool)
            pool.append(activation)  # moves it behind the pooling


def _sees_values(pool: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether every window of a pooling holds a value: dilated ones may hold padding alone, −∞."""
    options = vars(modules[str(pool.target)]) if pool.op == "call_module" else {**pool.kwargs}
    if pool.op != "call_module" and len(pool.args) > 3:
        return False
    return options.get("padding", 0) in (0, (0, 0)) or options.get("dilation", 1) in (1, (1, 1))


def _increases(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node applies one function, elementwise, that never decreases."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    kind = node.target if module is None else type(module)
    if kind not in operations.INCREASING or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    slope = operations.INCREASING[kind]
    given: Any = getattr(module, slope) if module and slope else (*node.args[1:], node.kwargs.get(slope, 0))[0]
    return isinstance(given, int | float) and given >= 0


def _module_step(node: fx.Node, modules: Mapping[str, nn.Module], names: Mapping[int, str]) -> Step:
    module = modules[str(node.target)]
    rule = operations.module_rule(module)
    if rule is None or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        raise NotStackableError(f"no stacked rule for {node.target} = {module}")
    source = node.args[0].name
    parameters = {role: names[id(p)] for role, p in module.named_parameters(recurse=False)}
    return Step(
        node.name,
        lambda env, weights: rule(module, env[source], weights),
        parameters,
        (source,),
        f"{str(node.target).removeprefix('0.')}: {type(module).__name__}",
    )


def _function_rule(node: fx.Node) -> Rule:
    """A rule for a function or method call; its arguments are looked up in the environment at run time."""
    target: Any = node.target
    kwargs = dict(node.kwargs)
    if kwargs.pop("inplace", False) or any(arg is True for arg in node.args):
        raise NotStackableError(f"{target} works in place")
    kwargs.pop("out", None)

    def resolve(env: Mapping[str, Any], value: Any) -> Any:
        return fx.node.map_arg(value, lambda n: env[n.name])

    def with_args(function: Callable[..., Any]) -> Rule:
        return lambda env, _: function(*resolve(env, node.args), **resolve(env, kwargs))

    def only_first(apply: Callable[..., Value], function: Callable[..., Tensor]) -> Rule:
        def evaluate(value: Value, *rest: Any, **options: Any) -> Value:
            return apply(lambda x: function(x, *rest, **options), value)

        return with_args(evaluate)

    if target in operations.ELEMENTWISE_FUNCTIONS:
        return only_first(operations.elementwise, operations.ELEMENTWISE_FUNCTIONS[target])
    if target is F.max_pool2d and not kwargs.get("return_indices"):
        kwargs.pop("return_indices", None)
        return with_args(operations.max_pool2d)
    if target in operations.POOLING_FUNCTIONS:
        space = operations.POOLING_FUNCTIONS[target]
        return only_first(lambda function, value: operations.per_channel(function, value, space), target)
    if target in operations.BINARY_FUNCTIONS and not kwargs:
        function = operations.BINARY_FUNCTIONS[target]

        def arithmetic(left: Any, right: Any) -> Any:
            if not isinstance(left, Value) and not isinstance(right, Value):
                return target(left, right)  # sizes, not values
            return operations.binary(function, *_same_rank(left, right))

        return with_args(arithmetic)
    if target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d) and kwargs.get("training") is False:
        return with_args(lambda value, *_, **__: value)
    if target is torch.cat:
        return with_args(_concatenate)
    if target in (torch.flatten, "flatten"):
        return with_args(_flatten)
    if target in ("view", "reshape", torch.reshape):
        return with_args(_reshape)
    if target == "size":
        return with_args(lambda value, dim=None: value.shape if dim is None else value.shape[dim])
    if target is getattr and node.args[1:] == ("shape",):
        return with_args(lambda value, _: value.shape)
    if target is operator.getitem:
        return with_args(_getitem)
    raise NotStackableError(f"no stacked rule for the function {target}")


def _same_rank(left: Any, right: Any) -> tuple[Any, Any]:
    if isinstance(left, Value) and isinstance(right, Value) and len(left.shape) != len(right.shape):
        raise NotStackableError("arithmetic between values of different rank broadcasts over the batch")
    return left, right


def _concatenate(values: list[Value], dim: int = 0) -> Value:
    if dim % len(values[0].shape) == 0:
        raise NotStackableError("concatenation along the batch")
    return operations.concatenate(values, dim)


def _flatten(value: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if start_dim % len(value.shape) == 0:
        raise NotStackableError("flatten over the batch")
    return operations.per_example(lambda x: x.flatten(start_dim, end_dim), value)


def _reshape(value: Value, *shape: Any) -> Value:
    sizes = tuple(shape[0]) if isinstance(shape[0], tuple | list | torch.Size) else shape
    if sizes[0] == -1 and -1 not in sizes[1:]:
        if value.shape.numel() != value.shape[0] * torch.Size(sizes[1:]).numel():
            raise NotStackableError("reshape over the batch")
    elif sizes[0] != value.shape[0]:
        raise NotStackableError("reshape over the batch")
    return operations.reshape(value, (value.shape[0], *sizes[1:]))


def _getitem(value: Any, key: Any) -> Any:
    if isinstance(value, Value):
        raise NotStackableError("indexing of values")
    return value[key]
