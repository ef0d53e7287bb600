-- emit: pieces of texts that are being made, for whoever reads them meanwhile. Taken from a holder of the lease only: a
-- worker that wakes from a long sleep can't mix its pieces into those of another. Not written into a full broker: the
-- answer will hold all of it. Returns how many were taken.
local taken = 0
for i = 3, #ARGV, 7 do
  local id, token, position, choice, offset, repeats, piece = unpack(ARGV, i, i + 6)
  local held, stream = unpack(redis.call('HMGET', key('record:' .. id), 'claim:' .. token, 'stream'))
  if held and stream then
    add_to_stream(id, position, 'run', string.match(claim_of(token), '^[^@]*'), 'choice', choice, 'offset', offset,
      'repeats', repeats, 'text', piece)
    taken = taken + 1
  end
end
return taken
