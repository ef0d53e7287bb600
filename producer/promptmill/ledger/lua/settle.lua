-- settle: the submitter ends prompts itself (cancel): one error for all given positions, or for all that are left.
-- Workers are told, so that they stop at once; one that misses it goes on in vain, or finds its lease gone.
local id, json = ARGV[3], ARGV[4]
write_even_when_full()
local count = tonumber(redis.call('HGET', key('record:' .. id), 'count'))
if not count then return 0 end
local positions = split(ARGV[5])
if #positions == 0 then positions = all_positions(count) end
local left = {}
for _, position in ipairs(unanswered(id, positions)) do
  -- Positions come from task ids, which people type.
  if tonumber(position) < count then left[#left + 1] = position end
end
if #left == 0 then return 0 end
answer_all(id, left, json)
redis.call('PUBLISH', key('settled'), table.concat(left, ',') .. ' ' .. id)
if is_complete(id) then conclude(id, clock()) end
return #left
