"""Which tests take more than about a second of a processor: `make test-fast` leaves them out.

``make test ARGS=--durations=25`` shows what is missing here.
"""

from __future__ import annotations

import hypothesis
import pytest

#: Files, and functions in files.
LONG = frozenset(
    {
        "tests/conformance/test_golden_attr.py",
        "tests/llm/test_llm_analysis.py",
        "tests/test_batch.py::test_modules_of_pytorch_and_estimators",
        "tests/llm/test_llm_architectures.py::test_a_cache_of_windows_starts_anew_where_it_has_given_up_what_is_needed",
        "tests/llm/test_llm_architectures.py::test_float16_products_on_the_npu_keep_the_direction_of_logits",
        "tests/llm/test_llm_architectures.py::test_tensors_are_taken_all_and_none_too_many",
        "tests/llm/test_llm_architectures_quantized.py",
        "tests/llm/test_llm_batch_service.py",
        "tests/llm/test_llm_commands.py",
        "tests/llm/test_llm_demo_model.py",
        "tests/llm/test_llm_evaluation.py",
        "tests/llm/test_llm_hostile_encoders.py",
        "tests/llm/test_llm_hostile_models.py::test_changed_settings",
        "tests/llm/test_llm_hostile_models.py::test_sizes_are_held_against_the_file_before_memory_is_taken",
        "tests/llm/test_llm_minilm.py::test_real_embeddings_are_those_of_transformers",
        "tests/llm/test_llm_gguf_file.py::test_whole_header_equals_gguf_reader",
        "tests/llm/test_llm_hostile_folders.py::test_changed_models",
        "tests/llm/test_llm_hostile_folders.py::test_files_of_weights",
        "tests/llm/test_llm_hybrids.py::test_a_chat_goes_on_in_its_cache_and_begins_anew_where_it_is_another",
        "tests/llm/test_llm_npu.py",
        "tests/llm/test_llm_speech.py::test_headers_of_wave_files_that_lie_take_no_memory",
        "tests/llm/test_llm_whisper.py::test_a_recording_that_was_interrupted_can_be_heard_again",
        "tests/llm/test_llm_quantized_npu.py::test_zero_points_and_centres",
        "tests/llm/test_llm_real_model.py",
        "tests/llm/test_pictures_example.py",
        "tests/llm/test_llm_sensitivity.py",
        "tests/llm/test_offloading_commands.py::test_the_document_shows_what_is_planned",
        "tests/llm/test_llm_experts_quantized.py::test_a_file_of_quantized_experts",
        "tests/llm/test_llm_experts_quantized.py::test_experts_that_nobody_chose_are_rounded_to_nearest_and_said_to_be",
        "tests/llm/test_modelled.py::test_a_layer_that_is_too_large_to_be_planned_is_named",
        "tests/llm/test_modelled.py::test_all_targets_are_met",
        "tests/llm/test_modelled.py::test_the_command_prints_tables_and_json",
        "tests/llm/test_modelled.py::test_the_command_takes_constants_that_were_fitted_here",
        "tests/llm/test_modelled.py::test_what_is_brought_in_is_what_a_residency_counts",
        "tests/llm/test_llm_hostile_speech.py::test_changed_settings",
        "tests/llm/test_llm_speech.py::test_features_are_those_of_transformers",
        "tests/llm/test_llm_whisper.py",
        "tests/nn/test_nn_convolution.py::test_conv1d_is_torchs",
        "tests/nn/test_nn_convolution.py::test_conv_transpose_is_torchs",
        "tests/quant/test_gptq.py::test_columns_are_those_of_the_published_algorithm",
        "tests/server/test_server_command.py",
        "tests/server/test_server_faults.py::test_nothing_is_left_after_requests_of_all_kinds",
        "tests/test_autotune.py::test_processes_lose_nothing_of_each_other",
        "tests/test_bench.py::test_command",
        "tests/test_bench_demo.py::test_command",
        "tests/test_benchmarks.py::test_command_of_batches",
        "tests/test_benchmarks.py::test_what_was_measured_survives_a_signal",
        "tests/test_bench_page.py",
        "tests/test_bench_record.py::test_changed_runs_are_refused_or_go_through_everything",
        "tests/test_bench_reports.py::test_a_run_has_the_plots_that_its_rows_are_enough_for",
        "tests/test_onnx_example.py",
        "tests/test_product_log.py",
        "tests/test_boardlock.py",
        "tests/test_budget.py::test_the_limit_of_descriptors_is_raised_when_it_is_needed",
        "tests/test_calibrate.py::test_all_constants_are_found_together",
        "tests/test_calibrate.py::test_simulators_of_other_boards",
        "tests/test_chains_lifetime.py::test_an_interrupt_anywhere_leaves_results_right_and_nothing_behind",
        "tests/test_chains_lifetime.py::test_many_products_leave_nothing_behind",
        "tests/test_cli.py",
        "tests/test_domains.py",
        "tests/test_examples.py",
        "tests/test_examples_alone.py",
        "tests/test_failures_threads.py",
        "tests/test_hostile_files.py::test_headers_are_bounded_by_the_file",
        "tests/test_import_contracts.py",
        "tests/test_interrupts.py::test_a_program_whose_run_hangs_ends_within_three_interrupts",
        "tests/test_interrupts.py::test_an_interrupt_ends_a_long_product_with_the_runs_that_are_going_on",
        "tests/test_interrupts.py::test_signals_by_a_timer_leave_nothing_behind",
        "tests/test_leaks.py",
        "tests/test_leases.py::test_a_program_ends_though_a_run_hangs",
        "tests/test_linking.py",
        "tests/test_matmul.py::test_nothing_grows_with_use",
        "tests/test_native.py",
        "tests/test_native_rows.py::test_products_run_where_more_rows_end_the_process",
        "tests/test_newer_runtime.py::test_info_of_known_runtimes_does_not",
        "tests/test_newer_runtime.py::test_info_says_once_what_it_is_used_as",
        "tests/test_objects_lifetime.py::test_cycles_with_finalizers_are_collected",
        "tests/test_probe.py",
        "tests/test_threads.py",
        "tests/test_types.py",
    }
)
#: What is slow to set up: 98 MB to read, and the programs that it is compared with.
DEMO_MODEL = frozenset({"demo", "demo_path", "reference_model", "reference_tokenizer"})


def amount(count: int) -> int:
    """How many of so many examples are tried: a tenth where the profile is that of `make test-fast`."""
    return max(1, count * hypothesis.settings().max_examples // 60)


def is_long(item: pytest.Item) -> bool:
    """Whether a test is left out."""
    file, _, rest = item.nodeid.partition("::")
    if not LONG.isdisjoint({file, f"{file}::{rest.partition('[')[0]}"}):
        return True
    if isinstance(item, pytest.DoctestItem):
        return "fetch_demo_model()" in (item.dtest.docstring or "") if item.dtest is not None else False
    return not DEMO_MODEL.isdisjoint(getattr(item, "fixturenames", ()))
