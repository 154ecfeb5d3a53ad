"""The operators that a bundle may hold: functional ATen overloads that compute from their arguments alone.

Nothing here writes to its arguments, draws random numbers (recurrent layers, attention and dropout do in
training only, which the loader checks as well), reads files, or looks at memory outside of a tensor.
"""

from __future__ import annotations

__all__ = ["ALLOWED_OPERATORS"]

_CREATION = """
    arange.default arange.start arange.start_step eye.default eye.m full.default
    full_like.default linspace.default new_full.default new_ones.default new_zeros.default ones.default
    ones_like.default scalar_tensor.default tril_indices.default triu_indices.default zeros.default
    zeros_like.default
"""

_VIEWS_AND_COPIES = """
    _to_copy.default _unsafe_view.default alias.default cat.default chunk.default clone.default
    constant_pad_nd.default contiguous.default copy.default detach.default diagonal.default
    diagonal_scatter.default dropout.default expand.default expand_as.default flatten.using_ints
    flip.default fliplr.default im2col.default col2im.default index_select.default lift_fresh_copy.default
    movedim.int movedim.intlist pad.default permute.default pixel_shuffle.default
    pixel_unshuffle.default reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
    repeat.default repeat_interleave.self_int replication_pad1d.default replication_pad2d.default
    replication_pad3d.default reshape.default roll.default rot90.default select.int
    select_scatter.default slice.Tensor slice_scatter.default split.Tensor split.sizes
    split_with_sizes.default squeeze.default squeeze.dim squeeze.dims stack.default swapaxes.default
    t.default tile.default transpose.int unbind.int unflatten.int unfold.default unsqueeze.default
    view.default view.dtype view_as.default
"""

_ELEMENTWISE = """
    abs.default acos.default acosh.default add.Scalar add.Tensor addcdiv.default addcmul.default
    asin.default asinh.default atan.default atan2.default atanh.default bitwise_and.Scalar
    bitwise_and.Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not.default
    bitwise_or.Scalar bitwise_or.Tensor bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
    bitwise_xor.Scalar bitwise_xor.Tensor ceil.default celu.default clamp.Tensor clamp.default
    clamp_max.Tensor clamp_max.default clamp_min.Tensor clamp_min.default copysign.Scalar
    copysign.Tensor cos.default cosh.default deg2rad.default div.Scalar div.Scalar_mode div.Tensor
    div.Tensor_mode elu.default eq.Scalar eq.Tensor erf.default erfc.default erfinv.default
    exp.default exp2.default expm1.default floor.default floor_divide.Scalar floor_divide.default
    fmax.default fmin.default fmod.Scalar fmod.Tensor frac.default ge.Scalar ge.Tensor gelu.default
    gt.Scalar gt.Tensor hardsigmoid.default hardswish.default hardtanh.default heaviside.default
    hypot.default isfinite.default isinf.default isnan.default isneginf.default isposinf.default
    le.Scalar le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor lgamma.default log.default
    log10.default log1p.default log2.default log_sigmoid.default log_sigmoid_forward.default
    logaddexp.default logaddexp2.default logical_and.default logical_not.default logical_or.default
    logical_xor.default logit.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor
    maximum.default minimum.default mish.default mul.Scalar mul.Tensor nan_to_num.default ne.Scalar
    ne.Tensor neg.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default rad2deg.default
    reciprocal.default relu.default relu6.default remainder.Scalar remainder.Tensor round.decimals
    round.default rsqrt.default rsub.Scalar rsub.Tensor selu.default sgn.default sigmoid.default
    sign.default silu.default sin.default sinc.default sinh.default softplus.default softshrink.default
    hardshrink.default sqrt.default square.default sub.Scalar sub.Tensor tan.default tanh.default
    threshold.default trunc.default where.Scalar where.ScalarOther where.ScalarSelf where.self xlogy.Tensor
"""

_REDUCTIONS = """
    all.default all.dim amax.default amin.default aminmax.default any.default any.dim argmax.default
    argmin.default argsort.default argsort.stable cummax.default cummin.default cumprod.default
    cumsum.default kthvalue.default linalg_vector_norm.default log_softmax.int _log_softmax.default
    logcumsumexp.default logsumexp.default max.default max.dim mean.default mean.dim median.default
    median.dim min.default min.dim norm.Scalar norm.ScalarOpt_dim prod.default prod.dim_int
    softmax.int _softmax.default sort.default sort.stable std.correction std.default std.dim sum.default
    sum.dim_IntList topk.default var.correction var.default var.dim var_mean.correction
"""

_INDEXING = """
    embedding.default gather.default index.Tensor index_add.default index_put.default masked_scatter.default
    scatter.src scatter.value scatter_add.default searchsorted.Tensor bucketize.Tensor
    take_along_dim.default tril.default triu.default diag_embed.default
"""

_LINEAR_ALGEBRA = """
    addbmm.default addmm.default addmv.default baddbmm.default bilinear.default bmm.default
    cdist.default cosine_similarity.default cross.default dot.default einsum.default
    linalg_cross.default linear.default matmul.default mm.default mv.default outer.default
    scaled_dot_product_attention.default tensordot.default pairwise_distance.default
"""

_LAYERS = """
    _native_batch_norm_legit_no_training.default _weight_norm.default adaptive_avg_pool1d.default
    adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
    adaptive_max_pool2d.default adaptive_max_pool3d.default affine_grid_generator.default
    avg_pool1d.default avg_pool2d.default avg_pool3d.default conv1d.default conv1d.padding
    conv2d.default conv2d.padding conv3d.default conv3d.padding conv_transpose1d.default
    conv_transpose2d.input conv_transpose3d.input convolution.default glu.default
    grid_sampler.default grid_sampler_2d.default grid_sampler_3d.default group_norm.default
    gru.input gru_cell.default instance_norm.default layer_norm.default
    lstm.input lstm_cell.default max_pool1d.default max_pool2d.default
    max_pool2d_with_indices.default max_pool3d.default native_group_norm.default
    native_layer_norm.default rms_norm.default rnn_relu.input rnn_tanh.input
    upsample_bicubic2d.default upsample_bicubic2d.vec upsample_bilinear2d.default
    upsample_bilinear2d.vec upsample_linear1d.default upsample_linear1d.vec
    upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default
    upsample_nearest2d.vec upsample_nearest3d.default upsample_nearest3d.vec
    upsample_trilinear3d.default upsample_trilinear3d.vec channel_shuffle.default
"""

ALLOWED_OPERATORS = frozenset(
    f"aten.{name}"
    for group in (
        _CREATION,
        _VIEWS_AND_COPIES,
        _ELEMENTWISE,
        _REDUCTIONS,
        _INDEXING,
        _LINEAR_ALGEBRA,
        _LAYERS,
    )
    for name in group.split()
)
