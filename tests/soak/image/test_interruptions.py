"""What tests/cluster/node does to a stand-in, done to a real finetune in the image that ships."""

from tests.cluster.node.test_interruptions import (
    test_a_deadline_and_launch_resume,
    test_a_drained_node,
    test_a_preemption_by_a_pod_of_higher_priority,
    test_an_eviction,
    test_more_deleted_pods_than_failures_are_allowed,
    test_suspended_and_resumed,
)

__all__ = [
    "test_a_deadline_and_launch_resume",
    "test_a_drained_node",
    "test_a_preemption_by_a_pod_of_higher_priority",
    "test_an_eviction",
    "test_more_deleted_pods_than_failures_are_allowed",
    "test_suspended_and_resumed",
]
